"""What a student is worth: held-out loss, distance to the teacher, calibration."""
