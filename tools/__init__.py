"""Programs for the people who develop falctl; none of them is installed."""
