"""One thread a process: the networks here are tiny, and two processes that spin for each other's cores take ten times as long."""
import os

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported, and for the launchers' processes
