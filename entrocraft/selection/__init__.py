"""Selection: pressure and predicted effects decide which rollouts enter the update."""
