"""What is known of any nn.Module: how to call it, its modes, its integers, its weights."""
