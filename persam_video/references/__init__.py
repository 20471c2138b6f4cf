"""What the user gives to be followed: mask files, points and boxes."""
