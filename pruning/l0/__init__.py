"""Hard-concrete gates on nodes (L0 regularisation). Optional: nothing else of the engine needs it."""
