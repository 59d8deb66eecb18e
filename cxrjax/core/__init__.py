"""What every room may use: errors, building by name, durations. Imports no other room."""
