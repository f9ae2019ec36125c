"""Utilities that all packages share: errors, files, parameter trees, device information, reports, flags."""
