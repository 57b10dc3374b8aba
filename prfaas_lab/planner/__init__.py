"""The scheduler's arithmetic: the paper's equations 1-8, the search over (t, N_p), and the limit."""
