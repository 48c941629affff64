"""All teachers being served: one lane each, fed by a fair queue and a batcher. Knows no wire and no model library."""
