"""What will a step cost on machines that are not here?"""
