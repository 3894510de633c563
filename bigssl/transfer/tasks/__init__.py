"""What is it worth for one purpose? One file per evaluation."""
