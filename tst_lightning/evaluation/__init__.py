"""Scores of a trained model on tasks: its model (subject), tasks and their data (tasks), scores, what is kept (record)."""
