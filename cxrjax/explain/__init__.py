"""What an encoder looks at. May import `models`; draws nothing (that is `report`)."""
