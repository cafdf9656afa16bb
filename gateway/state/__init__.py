"""What workers share that may be lost. In this version it lives in each worker's memory."""
