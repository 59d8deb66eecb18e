"""Explanations of what a network looks at. May import `models`; figures are drawn by `report`."""
