# The guest's process 1, on the host's file system: makes the RDMA devices, runs the command with
# its output in the virtual port, leaves its exit status in the job's folder, and powers off.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
job=/run/job
power_off() {
    sync
    echo o >/proc/sysrq-trigger
    sleep 60 # until the power is off: the end of process 1 would be a panic
}
fail() {
    echo "session: $*" >/dev/console
    echo 125 >$job/status
    power_off
}

echo kvstore-rxe >/proc/sys/kernel/hostname
ulimit -l unlimited
ulimit -n 65536
ulimit -c 0
ip link set lo up
sh $job/fabric.sh >/dev/console 2>&1 || fail "there are no RDMA devices"

tries=0
until port=$(ls /dev/vport* 2>/dev/null) && [ -c "$port" ]; do
    tries=$((tries + 1))
    [ $tries -le 100 ] || fail "there is no virtual port"
    sleep 0.1
done
: >$job/ready
# By way of cat: a port can be opened once, and programs open /dev/stdout again. The status comes
# first, because a program that the command left running keeps cat waiting; the host does not.
{
    sh $job/command.sh </dev/null 2>&1
    echo $? >$job/status
} | cat >"$port"
power_off
