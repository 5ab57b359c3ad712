"""Who is told of a run's moments: what is recorded, drawn, exported."""
