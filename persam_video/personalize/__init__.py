"""The method of PerSAM on one picture: reference -> target -> location prior -> guided decoding."""
