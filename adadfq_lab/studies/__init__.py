"""Many runs: grids, tables, the paper's figures in small, and benchmarks."""
