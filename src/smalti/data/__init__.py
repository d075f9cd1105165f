"""Where examples come from: picture folders and named sets, read, brought to one shape, and put in their order."""
