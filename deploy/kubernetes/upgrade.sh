#!/bin/sh
# Upgrades the cache in place without RBG: deploy/kubernetes/upgrade.sh --help
set -eu

usage() {
    cat <<'TEXT'
Usage: upgrade.sh [OPTIONS] KIND/NAME IMAGE

Replace the image of a StatefulSet's or DaemonSet's pods one after the other, in place: the kubelet
restarts only the container, and the pod keeps its machine, address and volumes, so a store keeps
its cache. The set must have updateStrategy OnDelete. Its template gets the image first, so that a
pod that is made anew later has it, too.

Before each pod, the set's other pods must be ready; after it, the pod must be ready again, in the
same place, with one restart more. Otherwise the script stops, and leaves the remaining pods as they
are. Run again, it goes on with those that do not have the image yet.

Options:
  -n, --namespace NAME   the set's namespace (default: the context's)
  -c, --container NAME   container (default: the pods' first one)
  -t, --timeout-s N      for each pod to be ready again (default: 600)
      --dry-run          say what would be done
  -h, --help             this text

Example:
  upgrade.sh -n vllm statefulset/cache-master kvstore:0.2.0
  upgrade.sh -n vllm statefulset/cache-store kvstore:0.2.0

Exit codes: 0 done, 1 stopped at a pod, 2 wrong arguments, 3 the set cannot be upgraded like this.
TEXT
}

fail() {
    code=$1
    shift
    echo "upgrade.sh: $*" >&2
    exit "$code"
}

namespace='' container='' timeout_s=600 dry_run=''
while [ $# -gt 0 ]; do
    case $1 in
    -n | --namespace | -c | --container | -t | --timeout-s)
        [ $# -ge 2 ] || fail 2 "$1 needs a value"
        case $1 in
        -n | --namespace) namespace=$2 ;;
        -c | --container) container=$2 ;;
        *) timeout_s=$2 ;;
        esac
        shift 2
        ;;
    --dry-run) dry_run=yes && shift ;;
    -h | --help) usage && exit 0 ;;
    -*) fail 2 "unknown option $1; see --help" ;;
    *) break ;;
    esac
done
[ $# -eq 2 ] || fail 2 "needs KIND/NAME and IMAGE; see --help"
set_name=$1 image=$2
case $set_name in
statefulset/?* | daemonset/?*) ;;
*) fail 2 "$set_name must be statefulset/NAME or daemonset/NAME" ;;
esac
case $timeout_s in
'' | *[!0-9]*) fail 2 "--timeout-s $timeout_s is no number of seconds" ;;
esac
command -v kubectl >/dev/null || fail 2 "there is no kubectl"

kube() {
    kubectl ${namespace:+--namespace="$namespace"} "$@"
}

# What a pod is known by: its machine, address, and how often the container has started again.
place() {
    kube get pod "$1" -o "jsonpath={.metadata.uid} {.spec.nodeName} {.status.podIP}"
}

restarts() {
    found=$(kube get pod "$1" -o "jsonpath={.status.containerStatuses[?(@.name=='$container')].restartCount}")
    echo "${found:-0}"
}

image_of() {
    kube get pod "$1" -o "jsonpath={.spec.containers[?(@.name=='$container')].image}"
}

is_ready() {
    found=$(kube get pod "$1" -o "jsonpath={.status.conditions[?(@.type=='Ready')].status}")
    [ "$found" = True ]
}

# The container has started again, and its pod is ready: in that order, for it is ready before, too.
wait_restarted() {
    pod=$1 before=$2 waited=0
    until [ "$(restarts "$pod")" -gt "$before" ] && is_ready "$pod"; do
        [ "$waited" -lt "$timeout_s" ] || return 1
        [ $((waited % 10)) -ne 0 ] || echo "$pod: waiting until it is ready again (${waited} s)"
        sleep 1
        waited=$((waited + 1))
    done
}

upgrade_pod() {
    pod=$1
    if [ "$(image_of "$pod")" = "$image" ]; then
        echo "$pod: has $image"
        return
    fi
    for other in $pods; do
        is_ready "$other" || fail 1 "$pod not changed: $other is not ready"
    done
    if [ -n "$dry_run" ]; then
        echo "$pod: would get $image in place"
        return
    fi
    before=$(restarts "$pod")
    place_before=$(place "$pod")
    patch="{\"spec\":{\"containers\":[{\"name\":\"$container\",\"image\":\"$image\"}]}}"
    kube patch pod "$pod" --type=strategic --patch="$patch" >/dev/null
    wait_restarted "$pod" "$before" || fail 1 "$pod: not ready within $timeout_s s; kubectl describe pod $pod says why"
    [ "$(place "$pod")" = "$place_before" ] || fail 1 "$pod: is a new pod; its cache is lost. Was $place_before"
    echo "$pod: has $image, in place, restarts $before -> $(restarts "$pod")"
}

strategy=$(kube get "$set_name" -o "jsonpath={.spec.updateStrategy.type}")
[ "$strategy" = OnDelete ] || fail 3 "$set_name has updateStrategy $strategy: a new image would make new pods, and lose their cache; it must be OnDelete"
selector=$(kube get "$set_name" -o "go-template={{range \$k, \$v := .spec.selector.matchLabels}}{{\$k}}={{\$v}},{{end}}")
selector=${selector%,}
pods=$(kube get pods --selector="$selector" --sort-by=.metadata.name -o "jsonpath={.items[*].metadata.name}")
[ -n "$pods" ] || fail 3 "$set_name has no pods"
if [ -z "$container" ]; then
    container=$(kube get "$set_name" -o "jsonpath={.spec.template.spec.containers[0].name}")
fi
if [ -z "$dry_run" ]; then
    kube set image "$set_name" "$container=$image" >/dev/null
fi
for one in $pods; do
    upgrade_pod "$one"
done
