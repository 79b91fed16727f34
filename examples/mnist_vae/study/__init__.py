"""What a trained model is judged by, what it is compared with, and the pictures and tables of both."""
