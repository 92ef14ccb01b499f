"""What the loss looks like around a point and between two: lines, planes, paths, critical points."""
