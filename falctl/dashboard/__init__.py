"""What falctl status shows: a pure view of the board, and the loop that draws it."""
