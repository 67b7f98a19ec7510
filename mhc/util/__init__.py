"""What belongs to no room: whole files, journals, values from the environment."""
