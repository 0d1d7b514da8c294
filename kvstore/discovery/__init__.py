"""Where servers find each other: a RoleBasedGroup's file, or a headless Service in DNS."""
