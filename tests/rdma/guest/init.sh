#!/bin/busybox sh
# The first program of the guest: mounts this machine's file system as its root, and goes there.
# Writes to it stay in the guest's memory.
export PATH=/bin
/bin/busybox --install -s /bin
fail() {
    echo "init: $*" >/dev/console
    poweroff -f
}
mkdir -p /proc /sys /dev /lower /upper /root # the kernel made some
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
for module in /modules/*.ko; do
    # crc32_pclmul is refused by processors without that instruction.
    insmod "$module" || echo "init: ${module##*/} is not loaded" >/dev/console
done

options=trans=virtio,version=9p2000.L,msize=524288
mount -t 9p -o $options,ro,noatime,cache=loose host /lower || fail "cannot mount the host's files"
mount -t tmpfs -o mode=755,size=75% tmpfs /upper
mkdir /upper/files /upper/work
mount -t overlay -o lowerdir=/lower,upperdir=/upper/files,workdir=/upper/work overlay /root ||
    fail "cannot mount the overlay"
for folder in proc sys dev; do
    mount --move /$folder /root/$folder
done
mount -t tmpfs -o mode=755 tmpfs /root/run
mkdir -p /root/dev/pts /root/dev/shm /root/run/lock /root/run/job
mount -t devpts devpts /root/dev/pts
ln -s /proc/self/fd /root/dev/fd
for number in 0:stdin 1:stdout 2:stderr; do
    ln -s /proc/self/fd/${number%:*} /root/dev/${number#*:}
done
mount -t tmpfs -o mode=1777,size=50% tmpfs /root/dev/shm
# Written through: the host watches this folder.
mount -t 9p -o $options job /root/run/job || fail "cannot mount the job"
exec switch_root /root /bin/sh /run/job/session.sh
