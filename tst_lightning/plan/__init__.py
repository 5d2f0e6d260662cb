"""A plan before the spending: arms (arms), their budget (budget), memory (memory), the published advice (recommend)."""
