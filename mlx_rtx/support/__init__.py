"""What every part leans on: errors in one line, files, trees of arrays, the machine, reports, flags."""
