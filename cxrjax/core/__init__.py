"""What every room may use: errors, building by name, durations. Imports nothing of the other rooms."""
