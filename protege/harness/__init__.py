"""What grading is made of: the filter on patches, the two ways of running the tests, and the evidence they leave."""
