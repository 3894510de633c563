"""What is somebody's data, and which small recipe learns from it?"""
