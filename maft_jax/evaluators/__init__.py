"""Metrics: exact counts on the device, mIoU in both conventions, results as files and tables."""
