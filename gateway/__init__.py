"""The Chat Gateway: one server in front of every way to reach a chat model.

errors, backend, frames, dialects, concurrency, presence, settings, secrets, logs, metrics, plugins    leaves
store/       the database: users, keys, models, deployments, credentials, prices, exchanges, the ledger
state/       what workers share that may be lost: limits, conditions, who holds which agent
bus/         frames between the worker that holds an agent's socket and the one that holds a client
core/        what a gateway does with a call, without Flask and without SQL; begin at core/gateway.py
operations/  an operator's verbs, behind the command line
api/         Flask: one blueprint module per API family
app.py       puts it together;  cli.py the `gateway` command
"""

__version__ = "0.1.0"
