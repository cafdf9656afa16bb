"""What a gateway does with a call, step by step: begin at gateway.py. No Flask, no SQL, no gevent."""
