"""What a plan removes, and the tensors that are cut: plans, cuts by hand, low-rank factors, loading."""
