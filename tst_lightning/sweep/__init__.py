"""Sweeps: what is run (plan, cases), how (devices, pool, process, queues), and what came out (results, figure, report).

Every run is an ordinary ``tst fit`` in a process of its own; nothing here imports torch or lightning.
"""
