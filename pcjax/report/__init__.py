"""Tables and plots of a run or a comparison, as one HTML file."""
