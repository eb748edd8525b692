"""What a person asks for, one file a job."""
