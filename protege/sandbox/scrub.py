"""Take out of a repository whatever is not the history of the commit that an agent starts from.

An official image's ``/testbed/.git`` can hold later commits (branches, tags, remotes, reflogs, packs), and the
fix is one of them. ``SCRUB_GIT`` is run once for an image, as root, in the layer that hands the repository over to the
agent; ``CHECK_GIT`` is the cheap question whether that is needed. Grading uses the original image, in which the
eval script may well want other commits.
"""

from __future__ import annotations

import shlex

from protege.sandbox.base import WORKDIR

_GIT = "git -c safe.directory='*' -c core.hooksPath=/dev/null -c core.fsmonitor=false -c gc.auto=0 -c advice.detachedHead=false"

HOLDS_MORE = 4
"""What CHECK_GIT exits with where there is more than HEAD's own history."""

CHECK_GIT = rf"""
cd {WORKDIR} || exit 3
[ -d .git ] && [ ! -L .git ] || exit 3
head=$({_GIT} rev-parse --verify -q 'HEAD^{{commit}}') || exit 3
# one branch at most, and it is where HEAD is; nothing else that names a commit
refs=$({_GIT} for-each-ref --format='%(objectname)') || exit 3
for ref in $refs; do [ "$ref" = "$head" ] || exit 4; done
[ "$({_GIT} for-each-ref --count=3 --format='%(refname)' refs/tags refs/remotes refs/stash refs/notes refs/replace refs/pull | head -c1)" = "" ] || exit 4
for name in logs ORIG_HEAD FETCH_HEAD MERGE_HEAD CHERRY_PICK_HEAD REVERT_HEAD BISECT_LOG AUTO_MERGE REBASE_HEAD rebase-merge \
  rebase-apply sequencer shallow.lock worktrees modules lost-found objects/info/alternates info/grafts; do
  [ -e ".git/$name" ] || [ -L ".git/$name" ] && exit 4
done
{_GIT} config --get-regexp '^(remote|branch|url|include|submodule)' >/dev/null 2>&1 && exit 4
[ -e .git/protege-scrubbed ] && [ "$(cat .git/protege-scrubbed)" = "$head" ] && exit 0
# every object at hand must belong to HEAD; small repositories are counted in a few ms
have=$({_GIT} cat-file --batch-all-objects --batch-check='%(objectname)' 2>/dev/null | sort -u | wc -l)
mine=$({{ {_GIT} rev-list --objects HEAD; {_GIT} ls-files -s | awk '{{print $2}}'; }} | cut -d' ' -f1 | sort -u | wc -l)
[ "$have" -le "$mine" ] || exit 4
exit 0
"""
"""Exit 0: nothing but HEAD's own history; 4: there is more, run SCRUB_GIT; 3: no git repository (or a link to one)."""

SCRUB_GIT = rf"""
set -e
cd {WORKDIR}
export HOME=/nonexistent GIT_CONFIG_NOSYSTEM=1 GIT_CONFIG_GLOBAL=/dev/null LC_ALL=C
# a repository that borrows objects first takes its own copies; a link or a .git file is made a folder
if [ -f .git ]; then inner=$({_GIT} rev-parse --absolute-git-dir); rm .git; cp -a "$inner" .git; fi
if [ -s .git/objects/info/alternates ]; then {_GIT} repack -a -d -q; rm -f .git/objects/info/alternates; fi
head=$({_GIT} rev-parse --verify 'HEAD^{{commit}}')
# HEAD may be a branch whose name tells something; it becomes one that tells nothing
{_GIT} update-ref --no-deref HEAD "$head"
{_GIT} for-each-ref --format='delete %(refname)' | {_GIT} update-ref --stdin
rm -rf .git/refs .git/packed-refs .git/logs .git/reftable/lost .git/worktrees .git/modules .git/lost-found .git/rr-cache .git/subtree-cache
mkdir -p .git/refs/heads .git/refs/tags
rm -f .git/*_HEAD .git/BISECT_* .git/AUTO_MERGE .git/COMMIT_EDITMSG .git/*_MSG .git/MERGE_* .git/gc.log .git/description .git/branches/* 2>/dev/null || true
rm -rf .git/rebase-merge .git/rebase-apply .git/sequencer .git/info/grafts .git/info/refs .git/hooks
printf '%s\n' "$head" > .git/refs/heads/main
printf 'ref: refs/heads/main\n' > .git/HEAD
printf '[core]\n\trepositoryformatversion = 0\n\tfilemode = true\n\tbare = false\n\tlogallrefupdates = false\n[gc]\n\tauto = 0\n' > .git/config.new
mv .git/config.new .git/config
# objects of HEAD and of the index stay; packs are written anew, so that no delta base or loose copy of another is left
rm -f .git/objects/pack/*.keep .git/objects/pack/*.promisor .git/objects/pack/*.mtimes
{_GIT} -c gc.pruneExpire=now -c repack.writeBitmaps=false repack -a -d -q --no-write-bitmap-index 2>/dev/null || {_GIT} repack -a -d -q
{_GIT} prune --expire=now
{_GIT} prune-packed -q
rm -rf .git/objects/info/commit-graph .git/objects/info/commit-graphs .git/objects/info/packs .git/objects/pack/multi-pack-index*
printf '%s\n' "$head" > .git/protege-scrubbed
[ "$({_GIT} rev-parse HEAD)" = "$head" ]
{_GIT} fsck --connectivity-only --no-dangling >/dev/null 2>&1
"""
"""Run as root with ``bash``; keeps HEAD's commit id, the work tree and the index. Exits non-zero where it fails."""

ENSURE_GIT = f"""
set +e
/bin/bash -c {shlex.quote(CHECK_GIT)}
case $? in
  0) ;;
  4) /bin/bash -c {shlex.quote(SCRUB_GIT)} || {{ echo "git history could not be scrubbed" >&2; exit 5; }}
     /bin/bash -c {shlex.quote(CHECK_GIT)} || {{ echo "git history is not clean after scrubbing" >&2; exit 5; }} ;;
  *) echo "{WORKDIR} is no git repository" >&2; exit 3 ;;
esac
"""
"""CHECK_GIT, SCRUB_GIT where needed, and CHECK_GIT again. Exit 0: clean now; 3: no repository; 5: it cannot be cleaned."""
