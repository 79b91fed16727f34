"""An agent that is overseen now and then: two experts, of which routing makes one that goes to the diamond."""
