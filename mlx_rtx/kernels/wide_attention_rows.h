CONSTANT int WIDTH = HEADS * LENGTH;
CONSTANT int PITCH = 3 * WIDTH;

// Teams take the rows from `above` on there and back again, so that each sees about as many keys as the others.
INLINE int row_of(int above, int team) { return above + (above / TEAMS % 2 ? TEAMS - 1 - team : team); }

// the least and the greatest row of a warp, whose teams must shuffle in step
INLINE int least_row(int above, int rank) {
  return min(row_of(above, (rank & ~31) / LANES), row_of(above, (rank | 31) / LANES));
}
INLINE int greatest_row(int above, int rank) {
  return max(row_of(above, (rank & ~31) / LANES), row_of(above, (rank | 31) / LANES));
}
