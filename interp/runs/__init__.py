"""Long loops that survive a kill: folders, jobs, locks, Ray."""
