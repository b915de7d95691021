"""The paper in miniature: a world of short spoken facts that two CPU cores can learn."""
