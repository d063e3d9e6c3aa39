/*
 * The two-phase transaction of one VM: the controller's operation, the agent's journal, the hook, and what goes wrong.
 *
 * docs/protocol.md explains it. The text in AT("who: what") is the code's own name for the step;
 * tests/protocol/test_names.py holds that each of them exists there, and that none of the code's is left out.
 * A process that dies at any line is the `unless` at its end. Every fault has a budget, so every run is finite, and
 * the Monitor judges the state in which nothing is left to do.
 *
 * Operation o asks its agent for transaction o; the state of a VM is which transaction each of its parts is from,
 * counted from 1, and 0 at the beginning.
 */

#ifndef OPERATIONS          /* of controllers that do not know of each other */
#define OPERATIONS 1
#endif
#ifndef ENGINES             /* that run the same operation: the second takes over while the first may still run */
#define ENGINES 1
#endif
#ifndef NETWORK             /* messages lost, delayed or doubled, answers lost */
#define NETWORK 0
#endif
#ifndef STEP_FAILURES       /* a step, or the journal, that fails with an error */
#define STEP_FAILURES 0
#endif
#ifndef AGENT_KILLS
#define AGENT_KILLS 0
#endif
#ifndef CONTROLLER_KILLS
#define CONTROLLER_KILLS 0
#endif
#ifndef REBOOTS             /* of the agent's host */
#define REBOOTS 0
#endif
#ifndef LIBVIRTD_RESTARTS
#define LIBVIRTD_RESTARTS 0
#endif
#ifndef STARTS              /* of the VM, through the hook */
#define STARTS 1
#endif

#define AT(what) printf(what)
#define CALLERS (OPERATIONS * (ENGINES + 1))

mtype = { unknown, preparing, prepared, committing, aborting, committed, aborted }; /* states of a transaction */
mtype = { begin, planned, commit, rollback };       /* journal records; prepared, committed, aborted are ones too */
mtype = { PUT, UPLOAD, COMMIT, ABORT, GET };                                      /* requests */
mtype = { nothing, refused, not_found, timed_out, unreachable };                  /* answers; states are ones too */
mtype = { idle, prepare, finish, undo, recover };                                 /* what an agent is at */
mtype = { running, succeeded, failed, outcome_unknown };                          /* an operation's row */
mtype = { none, creating, ready };                                                /* what it makes in the records */
mtype = { off, starting, up };                                                /* the VM */
mtype = { by_agent, by_hook };

/* Names of the invariants, so that an assertion says which one it is. All are false for ever. */
bit all_or_nothing, never_in_the_middle, records_match_hosts, the_answer_is_true, effect_once, no_orphans,
    always_an_answer, not_held;
#define INVARIANT(name, holds) assert(name || (holds))

/* On the host's disk. */
mtype journal[OPERATIONS] = unknown;
byte guard;                             /* the transaction that holds it */
bool mark;                              /* a starting mark that counts: of this boot and this libvirtd */
bool overlay[OPERATIONS], captured[OPERATIONS], received[OPERATIONS];
byte disks, nvram, tpm;
byte old_disks[OPERATIONS], old_nvram[OPERATIONS], old_tpm[OPERATIONS];  /* in the plan, or at the staged name */
byte commits[OPERATIONS];

/* In the host's memory. */
mtype vm = off;
mtype hook_lock = nothing;
bool libvirtd = true;
mtype state[OPERATIONS] = unknown;
mtype todo[OPERATIONS] = recover;
byte caller[OPERATIONS];                /* who waits for the answer, counted from 1 */
mtype asked_of[OPERATIONS] = nothing;   /* what for */
byte recovered;                         /* transactions looked at since the agent began */
bool kill_agent[OPERATIONS], kill_hook;
#define SERVING (recovered == OPERATIONS)
#define ENDED(o) (state[o] == committed || state[o] == aborted)
#define WHOLE (disks == nvram && nvram == tpm)

/* In the controller's database. */
mtype row[OPERATIONS] = running;
mtype records[OPERATIONS] = none;
byte owner[OPERATIONS];
bool recorded[OPERATIONS], sealed[OPERATIONS], concluded[OPERATIONS];
bool kill_engine[CALLERS], dead[OPERATIONS];

/* On the wire. */
mtype request[CALLERS] = nothing, answer[CALLERS] = nothing;
bool answer_is_lost[CALLERS], waiting[CALLERS];
bool late_put[OPERATIONS], late_commit[OPERATIONS], late_abort[OPERATIONS];
byte network = NETWORK, step_failures = STEP_FAILURES;

/* ------------------------------------------------------------------------------------------------ the agent: calls */

inline reply(o, told) {
    if
    :: caller[o] > 0 ->
        if
        :: answer_is_lost[caller[o] - 1] -> answer[caller[o] - 1] = timed_out
        :: else -> answer[caller[o] - 1] = told
        fi;
        answer_is_lost[caller[o] - 1] = false;
        caller[o] = 0
    :: else
    fi
}

/* What a request changes at once; longer work is left in todo. `_begin` looks for another transaction of the VM. */
inline handle(o, asked) {
    if
    :: asked == GET -> AT("agent: get\n");
        if :: state[o] == unknown -> reply(o, not_found) :: else -> reply(o, state[o]) fi
    :: asked == PUT -> AT("agent: put\n");
        if
#ifdef PUT_BEGINS_AGAIN
        :: state[o] == unknown || ENDED(o) ->
#else
        :: state[o] == unknown ->
#endif
            if
            :: OPERATIONS == 2 && state[OPERATIONS - 1 - o] != unknown && !ENDED(OPERATIONS - 1 - o) ->
                reply(o, refused)
            :: else -> state[o] = preparing; todo[o] = prepare
            fi
        :: else ->
            if :: state[o] == aborted -> reply(o, refused) :: else -> reply(o, state[o]) fi
        fi
    :: asked == UPLOAD -> AT("agent: upload\n");
        if
        :: state[o] == prepared -> AT("agent: receive nvram\n"); AT("agent: receive tpm\n");
            received[o] = true; reply(o, prepared)
        :: else -> reply(o, refused)
        fi
    :: asked == COMMIT -> AT("agent: commit\n");
        if
        :: state[o] == unknown -> reply(o, not_found)
        :: state[o] == committing || state[o] == committed -> reply(o, state[o])
        :: state[o] == prepared && !received[o] -> reply(o, refused)
        :: state[o] == prepared && step_failures > 0 ->     /* the journal could not be written */
            step_failures--; reply(o, refused)
        :: state[o] == prepared && received[o] ->
#ifndef SWITCH_BEFORE_JOURNAL
            AT("agent: journal commit\n"); journal[o] = commit; commits[o]++;
            INVARIANT(effect_once, commits[o] == 1);
#endif
            state[o] = committing; todo[o] = finish
        :: else -> reply(o, refused)
        fi
    :: asked == ABORT -> AT("agent: abort\n");
        if
        :: state[o] == unknown -> reply(o, not_found)
        :: state[o] == prepared || state[o] == aborting -> todo[o] = undo; state[o] = aborting
        :: state[o] == aborted -> reply(o, aborted)
        :: else -> reply(o, refused)
        fi
    fi
}

/* Each operation has a slot for each engine, and one for whoever settles what they left. */
#define SLOT(o, e) (o * (ENGINES + 1) + e)

#if ENGINES == 2
#define REQUESTED(o) (request[SLOT(o, 0)] != nothing || request[SLOT(o, 1)] != nothing || request[SLOT(o, 2)] != nothing)
#else
#define REQUESTED(o) (request[SLOT(o, 0)] != nothing || request[SLOT(o, 1)] != nothing)
#endif
#define ASKED(o) (REQUESTED(o) || late_put[o] || late_commit[o] || late_abort[o])

inline take(o, slot) { asked_of[o] = request[slot]; request[slot] = nothing; caller[o] = slot + 1 }

/* A step of a transaction: the VM must be at rest from the survey to the end. */
#define STEP(name) AT(name); INVARIANT(never_in_the_middle, vm == off)

/* raise_guard: under the lock that the hook takes too. `raised` tells whether it stands. */
inline raise_guard(o) {
    atomic { hook_lock == nothing -> hook_lock = by_agent; raised = false };
    atomic {
        if
        :: guard == o + 1 -> raised = true
        :: guard != 0 && guard != o + 1                 /* DomainBusy */
        :: guard == 0 && mark                           /* DomainStarting */
        :: guard == 0 && !mark -> seen_no_mark = true
        fi
    };
    atomic {
        if :: seen_no_mark -> AT("agent: raise-guard\n"); guard = o + 1; raised = true; seen_no_mark = false :: else fi;
        hook_lock = nothing
    }
}

/* What libvirt says: a VM that is starting is shut off to it. A step that fails is undone. */
inline survey() { atomic { AT("agent: survey\n"); found = (libvirtd && vm != up) } }

/* ------------------------------------------------------------------------------------------------------- the agent */

proctype Agent(byte o) {
    bool raised, seen_no_mark, found, switching, counted;
again:
    {
        do
        :: todo[o] == recover ->
            if
            :: atomic { journal[o] == unknown -> todo[o] = idle; recovered++ }
            :: atomic { journal[o] == committed || journal[o] == aborted -> AT("agent: let_go\n");
                if :: guard == o + 1 -> guard = 0 :: else fi;
#ifndef OUTCOME_FORGOTTEN
                state[o] = journal[o];
#endif
                todo[o] = idle; recovered++ }
            :: atomic { journal[o] != unknown && journal[o] != committed && journal[o] != aborted ->
                if
                :: journal[o] == commit -> state[o] = committing
#ifdef RECOVERY_ONCE
                :: journal[o] == begin || journal[o] == planned -> state[o] = preparing
                :: journal[o] == prepared -> state[o] = prepared
                :: journal[o] == rollback -> state[o] = aborting
#else
                :: else -> state[o] = aborting
#endif
                fi };
                raise_guard(o);
                atomic {
                    AT("agent: resume\n");
                    if
                    :: raised && journal[o] == commit -> todo[o] = finish
                    :: raised && journal[o] != commit -> todo[o] = undo
#ifdef RECOVERY_ONCE
                    :: !raised -> todo[o] = idle
#else
                    :: else                             /* the tick tries again */
#endif
                    fi;
                    if :: !counted -> counted = true; recovered++ :: else fi
                };
                todo[o] != recover || (!mark && (guard == 0 || guard == o + 1))
            fi

        :: todo[o] == prepare ->
            atomic { AT("agent: journal begin\n"); INVARIANT(effect_once, journal[o] == unknown); journal[o] = begin };
            found = true;
#ifdef GUARD_AFTER_CHECK
            survey();
            raise_guard(o);
#else
            raise_guard(o);
            if :: raised -> survey() :: else fi;
#endif
            if
            :: !raised || !found -> atomic { todo[o] = undo; state[o] = aborting }
            :: raised && found ->
#ifdef STAGE_BEFORE_PLAN
                overlay[o] = true;
#endif
                atomic { AT("agent: journal planned\n"); journal[o] = planned; old_disks[o] = disks };
                if
                :: atomic { step_failures > 0 -> step_failures--; todo[o] = undo; state[o] = aborting }
                :: atomic { STEP("agent: create-overlay vda\n"); overlay[o] = true };
                    atomic { STEP("agent: capture nvram\n"); STEP("agent: capture tpm\n"); captured[o] = true };
                    atomic { STEP("agent: journal prepared\n"); journal[o] = prepared; state[o] = prepared;
                        todo[o] = idle; reply(o, prepared) }
                fi
            fi

        :: todo[o] == finish ->
            atomic { STEP("agent: swap nvram\n");
                if :: nvram != o + 1 -> old_nvram[o] = nvram; nvram = o + 1 :: else fi };
#ifdef LEASE_DURING_COMMIT
            if :: atomic { journal[o] == commit -> todo[o] = undo; state[o] = aborting; journal[o] = prepared; goto again }
               :: skip fi;
#endif
            atomic { STEP("agent: swap tpm\n");
                if :: tpm != o + 1 -> old_tpm[o] = tpm; tpm = o + 1 :: else fi };
            if
            :: atomic { step_failures > 0 -> step_failures--; AT("agent: journal rollback\n"); journal[o] = rollback;
                todo[o] = undo; state[o] = aborting }
            :: atomic { libvirtd -> STEP("agent: switch-disks vda\n"); disks = o + 1 };
#ifdef SWITCH_BEFORE_JOURNAL
                atomic { AT("agent: journal commit\n"); journal[o] = commit; commits[o]++ };
#endif
#ifdef DROP_GUARD_BEFORE_ENDED
                guard = 0;
#endif
                atomic { STEP("agent: remove staged nvram\n"); STEP("agent: remove staged tpm\n");
                    STEP("agent: remove captured host files\n"); received[o] = false; captured[o] = false };
                atomic { AT("agent: journal ended\n"); journal[o] = committed; INVARIANT(all_or_nothing, WHOLE && disks == o + 1);
                    INVARIANT(the_answer_is_true, row[o] != failed) };
                atomic { hook_lock == nothing -> AT("agent: drop-guard\n"); guard = 0;
                    state[o] = committed; todo[o] = idle; reply(o, committed) }
            :: atomic { !libvirtd -> reply(o, committing) };    /* under its guard; the tick tries again */
                libvirtd
            fi

        :: todo[o] == undo ->
            atomic { switching = (journal[o] == rollback || journal[o] == commit) };
            if
            :: switching ->
                atomic { libvirtd -> STEP("agent: undo switch-disks vda\n");
                    if :: disks == o + 1 -> disks = old_disks[o] :: else fi };
                atomic { STEP("agent: undo swap tpm\n"); if :: tpm == o + 1 -> tpm = old_tpm[o] :: else fi };
                atomic { STEP("agent: undo swap nvram\n"); if :: nvram == o + 1 -> nvram = old_nvram[o] :: else fi }
            :: else
            fi;
            if
            :: journal[o] != begin ->               /* the plan is known */
                atomic { STEP("agent: undo receive tpm\n"); STEP("agent: undo receive nvram\n"); received[o] = false };
                atomic { STEP("agent: undo capture tpm\n"); STEP("agent: undo capture nvram\n"); captured[o] = false };
                atomic { STEP("agent: undo create-overlay vda\n"); overlay[o] = false }
            :: else
            fi;
            atomic { AT("agent: journal ended\n"); journal[o] = aborted;
                INVARIANT(all_or_nothing, WHOLE && disks != o + 1) };
            atomic { hook_lock == nothing -> AT("agent: drop-guard\n"); if :: guard == o + 1 -> guard = 0 :: else fi;
                state[o] = aborted; todo[o] = idle;
                reply(o, (asked_of[o] == ABORT -> aborted : refused)) }

        :: atomic { SERVING && todo[o] == idle && state[o] == prepared ->   /* at any time: the agent may have slept */
            AT("agent: lease-expired\n"); state[o] = aborting; todo[o] = undo }
        :: atomic { SERVING && todo[o] == idle && ASKED(o) ->
            if
            :: request[SLOT(o, 0)] != nothing -> take(o, SLOT(o, 0))
            :: request[SLOT(o, 1)] != nothing -> take(o, SLOT(o, 1))
#if ENGINES == 2
            :: request[SLOT(o, 2)] != nothing -> take(o, SLOT(o, 2))
#endif
            :: late_put[o] -> late_put[o] = false; asked_of[o] = PUT
            :: late_commit[o] -> late_commit[o] = false; asked_of[o] = COMMIT
            :: late_abort[o] -> late_abort[o] = false; asked_of[o] = ABORT
            fi;
            handle(o, asked_of[o]) }
        od
    } unless { atomic { kill_agent[o] -> kill_agent[o] = false; raised = false; seen_no_mark = false; found = false;
        switching = false; counted = false } };
    goto again
}

/* ------------------------------------------------------------------------------------------------- the controllers */

/* One request, and what becomes of it and of its answer. A host that is down is waited for, or given up. */
inline call(o, asked) {
    atomic {
        waiting[me] = true;
        if
        :: SERVING -> request[me] = asked
        :: network > 0 && SERVING -> network--; answer[me] = timed_out
        :: network > 0 && SERVING -> network--; answer_is_lost[me] = true; request[me] = asked
        :: network > 0 && asked == PUT -> network--; late_put[o] = true; answer[me] = timed_out
        :: network > 0 && asked == COMMIT -> network--; late_commit[o] = true; answer[me] = timed_out
        :: network > 0 && asked == ABORT -> network--; late_abort[o] = true; answer[me] = timed_out
        :: network > 0 && asked == COMMIT && SERVING -> network--; late_commit[o] = true; request[me] = asked
        :: !SERVING && AGENT_KILLS + REBOOTS > 0 -> answer[me] = unreachable
        fi
    };
    atomic { answer[me] != nothing -> view = answer[me]; answer[me] = nothing; waiting[me] = false }
}

/* What only the engine that has the operation may do. One that was asleep may have lost it to another. */
#ifndef UNFENCED
#define FENCED (owner[o] == e + 1 && row[o] == running)
#else
#define FENCED true
#endif

proctype Engine(byte o; byte e) {
    byte me = SLOT(o, e);
    mtype view = nothing;
    bool sees_sealed, sees_recorded, refuted;
again:
    {
        atomic {
            e == 0 || ENGINES == 2 ->
            if
            :: row[o] != running || dead[o] -> goto done
            :: row[o] == running && !dead[o] && (e == 1 || owner[o] < 2) -> AT("controller: claim\n"); owner[o] = e + 1
            :: row[o] == running && !dead[o] && e == 0 && owner[o] == 2 -> goto done
            fi;
            sees_sealed = sealed[o]; sees_recorded = recorded[o];
            if :: concluded[o] -> goto conclude :: else fi;
            AT("controller: step prepare\n")
        };
put:
        AT("controller: prepare\n"); call(o, PUT);
        if
        :: view == timed_out -> goto put
        :: (view == timed_out || view == unreachable) && sees_sealed -> goto unknown_end
        :: (view == timed_out || view == unreachable) && !sees_sealed -> goto take_back
        :: (view == refused || view == aborted || view == aborting) && !sees_sealed -> goto take_back
        :: (view == refused || view == aborted || view == aborting) && sees_sealed -> goto look_again
        :: view == preparing -> atomic { state[o] != preparing || !SERVING -> goto put }
        :: view == prepared || view == committing || view == committed
        fi;
        if
        :: !sees_recorded ->
upload:     AT("controller: upload\n"); call(o, UPLOAD);
            if
            :: view == timed_out -> goto upload
            :: view == timed_out || view == unreachable || view == refused ->
                if :: sees_sealed -> goto look_again :: else -> goto take_back fi
            :: view == prepared
            fi;
            atomic { AT("controller: recorded\n"); recorded[o] = true; sees_recorded = true;
                if :: records[o] == none -> records[o] = creating :: else fi }
        :: else
        fi;
#ifdef READY_BEFORE_COMMIT
        atomic { records[o] = ready; concluded[o] = true };
#endif
#ifndef COMMIT_UNSEALED
        atomic { AT("controller: seal\n"); if :: !FENCED -> goto done :: else -> sealed[o] = true; sees_sealed = true fi };
#endif
commit_once:
        AT("controller: commit\n"); call(o, COMMIT);
        if
        :: view == timed_out -> goto commit_once
        :: (view == timed_out || view == unreachable) && sees_sealed -> goto unknown_end
        :: (view == timed_out || view == unreachable) && !sees_sealed -> goto take_back
        :: view == refused || view == not_found -> goto look_again
        :: view == committing -> goto ended
        :: view == committed -> goto conclude
        fi;
look_again:
        AT("controller: transaction\n"); call(o, GET);
        if
        :: view == timed_out -> goto look_again
        :: view == timed_out || view == unreachable || view == not_found -> goto unknown_end
        :: view == committing -> goto ended
        :: view == committed -> goto conclude
        :: view == aborting || view == aborted -> refuted = true; goto take_back
#ifdef REFUTED_WITHOUT_ABORT
        :: view == prepared -> refuted = true; goto take_back
#else
        :: view == prepared
#endif
        fi;
give_up:
        AT("controller: abort\n"); call(o, ABORT);
        if
        :: view == timed_out -> goto commit_once
        :: view == timed_out || view == unreachable -> goto unknown_end
        :: view == aborted -> refuted = true; goto take_back
        :: view == refused -> goto look_again
        fi;
ended:
        atomic { ENDED(o) || !SERVING -> goto look_again };

take_back:
        AT("controller: abort\n"); call(o, ABORT);     /* once: what is not heard is left to the lease */
        atomic { AT("controller: undone\n");
            if :: FENCED && records[o] == creating -> records[o] = none :: else fi };
        atomic { AT("controller: finish\n");
            if :: FENCED && row[o] == running -> row[o] = failed :: else fi;
            INVARIANT(the_answer_is_true, row[o] != failed || (journal[o] != commit && journal[o] != committed));
            goto done };
unknown_end:
        atomic { AT("controller: finish\n"); if :: FENCED && row[o] == running -> row[o] = outcome_unknown :: else fi;
            goto done };
conclude:
        atomic { AT("controller: concluded\n");
            INVARIANT(records_match_hosts, records[o] != none);
            if :: records[o] == creating -> records[o] = ready :: else fi;
            concluded[o] = true };
        atomic { AT("controller: finish\n"); if :: FENCED && row[o] == running -> row[o] = succeeded :: else fi;
            INVARIANT(the_answer_is_true, journal[o] == committed && row[o] != failed);
            goto done }
    } unless {
        atomic { kill_engine[SLOT(o, e)] -> kill_engine[SLOT(o, e)] = false;
            view = nothing; sees_sealed = false; sees_recorded = false; refuted = false }
    };
    goto again;
done:
    skip
}

/* leftovers.settle: the next work on the VM, or the host's return, asks how it ended. */
proctype Settler(byte o) {
    byte me = SLOT(o, ENGINES);
    mtype view = nothing;
end_asked:
    atomic { row[o] != running && records[o] == creating -> AT("controller: settle\n") };
ask:
    AT("controller: outcome_of\n"); call(o, GET);
    if
    :: view == timed_out -> goto ask
    :: view == unreachable -> atomic { SERVING -> goto ask }
    :: view == preparing || view == prepared || view == aborting -> goto stop
    :: view == committing -> atomic { ENDED(o) || !SERVING -> goto ask }
    :: view == committed -> atomic { AT("controller: committed\n"); records[o] = ready; goto end_asked }
    :: view == aborted || view == not_found -> goto undone
    fi;
stop:
    call(o, ABORT);
    if
    :: view == aborted -> goto undone
    :: else -> goto ask
    fi;
undone:
    atomic { AT("controller: undone\n"); if :: records[o] == creating -> records[o] = none :: else fi; goto end_asked }
}

/* -------------------------------------------------------------------------------------- libvirt, the hook, the user */

#define BOOTS INVARIANT(never_in_the_middle, guard == 0); INVARIANT(all_or_nothing, WHOLE)

proctype User() {
    byte left = STARTS;
    bool refuses;
again:
    {
end_waits:
        do
        :: atomic { left > 0 && vm == off && libvirtd && !mark -> left--; AT("hook: prepare\n") };
#ifndef HOOK_WITHOUT_LOCK
            atomic { hook_lock == nothing -> AT("hook: lock\n"); hook_lock = by_hook };
#endif
            atomic { AT("hook: check_guard\n"); refuses = (guard != 0) };
            if
            :: refuses
            :: !refuses -> atomic { AT("hook: mark_starting\n"); mark = true; vm = starting }
            fi;
            atomic { if :: hook_lock == by_hook -> hook_lock = nothing :: else fi };
            if
            :: refuses
            :: !refuses -> atomic { BOOTS; vm = up };
                atomic { AT("hook: started\n"); mark = false };
                if
                :: atomic { AT("hook: stopped\n"); vm = off }
                :: skip                                             /* it runs on */
                fi
            :: !refuses -> vm = off; atomic { AT("hook: release\n"); mark = false }    /* QEMU did not come up */
            fi;
            refuses = false
        od
    } unless { atomic { kill_hook -> kill_hook = false; refuses = false } };
    goto again
}

/* -------------------------------------------------------------------------------------------------------- disasters */

inline agent_dies() {
    recovered = 0;
    if :: hook_lock == by_agent -> hook_lock = nothing :: else fi;
    for (i : 0 .. OPERATIONS - 1) {
        kill_agent[i] = true; state[i] = unknown; todo[i] = recover; caller[i] = 0; asked_of[i] = nothing
    }
    for (i : 0 .. CALLERS - 1) {
        if :: waiting[i] && answer[i] == nothing -> answer[i] = timed_out :: else fi;
        request[i] = nothing; answer_is_lost[i] = false
    }
    i = 0
}

/* What it has sent is lost, or still on its way. */
inline engine_dies(slot, o) {
    if
    :: request[slot] == PUT -> late_put[o] = true
    :: request[slot] == COMMIT -> late_commit[o] = true
    :: request[slot] == ABORT -> late_abort[o] = true
    :: true
    fi;
    if :: caller[o] == slot + 1 -> caller[o] = 0 :: else fi;
    request[slot] = nothing; answer[slot] = nothing; answer_is_lost[slot] = false; waiting[slot] = false;
    kill_engine[slot] = true
}

/* Nothing waits for these: each may come at any time, or never. */
proctype Faults() {
    byte i = 0, agent = AGENT_KILLS, controller = CONTROLLER_KILLS, reboots = REBOOTS, restarts = LIBVIRTD_RESTARTS;
end_waits:
    do
    :: atomic { agent > 0 && SERVING -> agent--; AT("fault: the agent is killed\n"); agent_dies() }
    :: atomic { agent > 0 && !SERVING -> agent--; AT("fault: the agent is killed in recovery\n"); agent_dies() }
    :: atomic { controller > 0 && row[0] == running && !dead[0] -> controller--;
        AT("fault: the controller is killed\n"); engine_dies(SLOT(0, 0), 0);
        if
        :: ENGINES == 1 -> AT("fault: it never comes back\n"); dead[0] = true
        :: true
        fi }
    :: atomic { reboots > 0 -> reboots--; AT("fault: the host reboots\n");
        vm = off; mark = false; hook_lock = nothing; kill_hook = true; agent_dies() }
    :: atomic { restarts > 0 && libvirtd -> restarts--; AT("fault: libvirtd dies\n");
        libvirtd = false; mark = false; kill_hook = true;
        if :: hook_lock == by_hook -> hook_lock = nothing :: else fi;
        if
        :: vm == starting -> vm = off
        :: vm == starting -> BOOTS; vm = up             /* QEMU ran already */
        :: vm != starting
        fi }
    :: !libvirtd -> libvirtd = true
    od
}

#define ALL_ENDED(o) (row[o] != running || dead[o])

/* Judges what is left when nobody has anything left to do. */
proctype Monitor() {
    byte o = 0;
    timeout ->
    atomic {
        for (o : 0 .. OPERATIONS - 1) {
            INVARIANT(always_an_answer, ALL_ENDED(o));
            INVARIANT(not_held, guard == 0 && hook_lock == nothing && (state[o] == unknown || ENDED(o)));
            INVARIANT(no_orphans, !received[o] && !captured[o] && (!overlay[o] || journal[o] == committed));
            INVARIANT(records_match_hosts, dead[o] || (records[o] == ready) == (journal[o] == committed));
            INVARIANT(records_match_hosts, dead[o] || records[o] != creating);
            INVARIANT(the_answer_is_true, row[o] != succeeded || journal[o] == committed)
        }
        INVARIANT(all_or_nothing, WHOLE)
    }
}

init {
    atomic {
        byte o = 0;
        for (o : 0 .. OPERATIONS - 1) {
            run Agent(o);
            run Engine(o, 0);
            if :: ENGINES == 2 -> run Engine(o, 1) :: else fi;
            run Settler(o)
        }
        run User(); run Faults(); run Monitor()
    }
}

ltl every_operation_ends { <> ALL_ENDED(0) }
