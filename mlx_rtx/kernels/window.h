// A window is two blocks; its last ROWS rows have outputs.

CONSTANT int WINDOW = 2 * K;
CONSTANT int SKIPPED = WINDOW - ROWS;
