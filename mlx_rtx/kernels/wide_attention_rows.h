CONSTANT int WIDTH = HEADS * LENGTH;
CONSTANT int PITCH = 3 * WIDTH;

// Rows from `above` on are assigned to teams in alternating order, so that each team processes about as many keys.
INLINE int row_of(int above, int team) { return above + (above / TEAMS % 2 ? TEAMS - 1 - team : team); }

// Smallest and largest row of a warp: all its teams must execute the same shuffles.
INLINE int least_row(int above, int rank) {
  return min(row_of(above, (rank & ~31) / LANES), row_of(above, (rank | 31) / LANES));
}
INLINE int greatest_row(int above, int rank) {
  return max(row_of(above, (rank & ~31) / LANES), row_of(above, (rank | 31) / LANES));
}
