"""Puts a report's page together."""

from __future__ import annotations

from html import escape

from teacherfarm.student.recipes.report import ReportData


def page(data: ReportData) -> str:
    """The whole page."""
    return f"<!doctype html><title>{escape(data.title)}</title><h1>{escape(data.title)}</h1><p>{data.result}</p>"
