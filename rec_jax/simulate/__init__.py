"""What would have happened, and what happens: policies judged by logs and by simulated users.

The value of a policy from the log of another one:

    feedback.py     logged bandit feedback as columns, checked
    off_policy.py   estimators of the value: IPS, SNIPS, direct method, doubly robust ones
    intervals.py    bootstrap, normal, and bounds that hold for any number of rows
    support.py      whether the log can answer: weights, effective sample, support
    judge.py        all of these for one log
    log_files.py    a log's file -> columns
    run_policy.py   a run's softmax over the catalogue as the policy to evaluate
    judge_log.py    from a log's file, and a run where there is one, to the judgement

Agents that play with simulated users:

    environments/   users: how one starts, and what one does with a slate
    rollout.py      many users to their end, on the device
    acting.py       how a model chooses what to show
    replay.py       a store of episodes
    agent_config.py the config with [environment]
    agent.py        playing, storing and learning as one function
    train_agent.py  the loop: evaluation, checkpoints, going on
    agent_report.py returns beside those of other policies, a page, a trajectory
"""
