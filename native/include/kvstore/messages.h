// Every message of the block protocol. kType is the frame type a struct travels under; tags are
// never reused; tag 40 is a request's time-out in milliseconds everywhere (0: none given).
#pragma once

#include "kvstore/frame.h"
#include "kvstore/messages_link.h"
#include "kvstore/messages_master.h"
#include "kvstore/messages_node.h"
#include "kvstore/messages_session.h"
