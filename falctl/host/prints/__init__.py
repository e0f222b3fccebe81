"""What an app prints, by the request that it prints it for; all of it still reaches the runner's normal output."""
