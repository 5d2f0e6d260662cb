"""Scores of a trained model on tasks: the tasks and their data (tasks), their scores (scores), what is kept (record)."""
