"""How a report looks, by light and by dark, on screens and on paper. Colours are Okabe and Ito's, which colour-blind
readers can tell apart, a little lighter where the page is dark.
"""

STYLE = """
:root { color-scheme: light dark; --page: #f6f7f9; --card: #fff; --ink: #1b1f24; --soft: #5d6672; --line: #dfe3e8;
  --c0: #0072b2; --c1: #d55e00; --c2: #009e73; --c3: #b6568f; --c4: #a97500; --c5: #2a8fc2; --c6: #6b7280; }
@media (prefers-color-scheme: dark) { :root { --page: #14171b; --card: #1d2127; --ink: #e8ebef; --soft: #9aa4b1;
  --line: #333a43; --c0: #4aa8e0; --c1: #f0854a; --c2: #35c79a; --c3: #d98bb9; --c4: #e6b03a; --c5: #7cc6ec;
  --c6: #98a2b0; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
main { max-width: 1180px; margin: 0 auto; padding: 28px 20px 60px; }
h1 { font-size: 26px; line-height: 1.25; margin: 0 0 4px; } h2 { font-size: 18px; margin: 36px 0 10px; }
p { margin: 6px 0; max-width: 75ch; } .soft, small { color: var(--soft); }
.tiles, .charts { display: grid; gap: 14px; }
.tiles { grid-template-columns: repeat(auto-fit, minmax(min(100%, 215px), 1fr)); margin: 20px 0; }
.charts { grid-template-columns: repeat(auto-fill, minmax(min(100%, 430px), 1fr)); }
.tile, .card, figure { background: var(--card); border: 1px solid var(--line); border-radius: 10px; }
.tile { padding: 12px 14px; } .tile b { display: block; font-size: 24px; line-height: 1.3; font-weight: 650; }
.tile span { color: var(--soft); font-size: 13px; }
.card { padding: 14px 16px; overflow-x: auto; } figure { margin: 0; padding: 12px 14px; }
figcaption span { font-weight: 400; font-size: 13px; }
caption { text-align: left; } caption, figcaption { font-weight: 600; margin-bottom: 4px; }
.key { display: inline-block; margin-left: 12px; color: var(--soft); white-space: nowrap; }
.key::before { content: ""; display: inline-block; width: 10px; height: 10px; border-radius: 3px; margin-right: 5px;
  background: var(--colour); }
svg { display: block; width: 100%; height: auto; overflow: visible; }
svg text { fill: var(--soft); font-size: 12px; } svg .axis { stroke: var(--line); } svg .curve { fill: none;
  stroke-width: 2; stroke-linejoin: round; } svg .level { stroke-dasharray: 5 4; stroke-width: 1.5; }
svg circle { stroke: var(--card); stroke-width: 1; } svg circle:hover { stroke: var(--ink); }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
td, th { padding: 3px 8px; text-align: right; border-bottom: 1px solid var(--line); font-weight: 400; }
th { color: var(--soft); } td:first-child, th:first-child { text-align: left; } tr:last-child > * { border-bottom: 0; }
.side { display: flex; flex-wrap: wrap; gap: 14px 22px; align-items: flex-start; }
.words td, .words th { text-align: left; }
.facts td { text-align: left; overflow-wrap: anywhere; }
.facts td:first-child { color: var(--soft); white-space: nowrap; }
.confusion td, .confusion th { padding: 4px 6px; border: 1px solid var(--line); text-align: center; font-size: 12.5px; }
.confusion th:first-child { text-align: right; } .confusion .right { background: rgb(0 114 178 / var(--share)); }
.confusion .wrong { background: rgb(213 94 0 / var(--share)); } .confusion .full { color: #fff; }
.confusion thead th { writing-mode: vertical-rl; transform: rotate(180deg); text-align: left; max-height: 9em; }
img.confusion { width: min(100%, 560px); image-rendering: pixelated; border: 1px solid var(--line); display: block; }
.stack { display: flex; height: 26px; border-radius: 6px; overflow: hidden; margin: 8px 0; gap: 2px; }
.stack i { background: var(--colour); flex: var(--share) 0 0; }
.note { border-left: 4px solid var(--c1); padding: 6px 12px; background: var(--card); border-radius: 6px; }
pre { margin: 0; font-size: 13px; } details { margin-top: 12px; } summary { cursor: pointer; color: var(--soft); }
@media print { body { background: none; } main { max-width: none; padding: 0; } figure, .card { break-inside: avoid; } }
"""
